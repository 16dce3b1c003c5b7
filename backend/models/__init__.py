"""Networks and heads. They know nothing of data, files or training."""
