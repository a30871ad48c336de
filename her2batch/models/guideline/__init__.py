"""The wording of the guidelines, applied to shares of tumour cells."""
