"""What happens around each call of a component: its mode, the step it keeps with other ranks, its time."""
