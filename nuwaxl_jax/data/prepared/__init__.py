"""Videos prepared once for training: one record a frame, in ArrayRecord files that are a TFDS data set as well."""
