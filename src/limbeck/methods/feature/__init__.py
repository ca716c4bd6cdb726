"""Methods whose knowledge lies in the teacher's features."""
