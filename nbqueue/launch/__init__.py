"""Starting workers, here and on clusters."""
