"""Series of models along an axis, such as training time, width or depth."""
