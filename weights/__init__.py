"""What every way of placing weights needs: blocks of a module, tensors of its files, modes, agreement of ranks."""
