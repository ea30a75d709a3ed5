"""Training data in the shape slime reads: converters and small generators. Files in, files out, no training."""
