"""What a component is made of: its blocks in memory, and its tensors on disk. Shared by sharding/ and offload/."""
