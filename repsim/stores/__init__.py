"""Activations on disk: the file, its reader, its writer, and stores over the same samples."""
