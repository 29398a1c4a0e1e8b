"""Images and sounds as the arrays that the towers were trained on."""
