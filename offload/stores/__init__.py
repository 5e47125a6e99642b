"""Where the weights of an offloaded component rest: in its own files, or in host memory that a node shares."""
