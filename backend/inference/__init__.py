"""From a volume and a network to labels on the source grid."""
