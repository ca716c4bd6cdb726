"""The alphabet every other part is written in: values of one batch, errors, settings."""
