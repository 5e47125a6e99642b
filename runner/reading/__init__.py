"""What a user wrote, in words and in files: read as it was written, or refused with the way to write it."""
