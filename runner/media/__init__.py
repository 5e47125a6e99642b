"""What a pipeline makes, and how it is written: pictures, clips, arrays, and the sheet that shows them."""
