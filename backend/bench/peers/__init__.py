"""What the product is measured against: plain steps and MONAI's. Nothing else may import them."""
