"""Files as arguments of a call: named, checked before weights are loaded, read when their request is made."""
