"""Maths that two or more methods need: tensors in, tensors out, no settings and no state."""
