"""Datasets on disk become padded batches: index, reader, augmentation, collation, loaders."""

import os

# albumentations asks a server for newer versions when it is imported; training must not.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
