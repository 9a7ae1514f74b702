"""The hands: parent, stable, horse."""
