"""Run folders in, tables and figures out; reads files alone and never imports torch."""
