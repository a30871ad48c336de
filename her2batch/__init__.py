"""her2batch: HER2 scoring of whole-slide images, a cohort a night."""
