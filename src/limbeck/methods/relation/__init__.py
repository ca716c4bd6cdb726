"""Methods whose knowledge lies in relations between images, classes or layers."""
