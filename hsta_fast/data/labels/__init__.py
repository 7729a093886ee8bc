"""Label sets: from annotated words and action units to class numbers."""
