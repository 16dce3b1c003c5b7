"""`backend bench`: every part that must be fast, timed side by side with the peer named for it."""
