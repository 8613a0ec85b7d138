"""What is raised for an image that cannot be used, so that it can be left out where that is asked for."""


class ImageFileError(ValueError):
    """An image file that cannot be used; the message names the file and says what to do."""
