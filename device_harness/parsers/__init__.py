"""What devices and runners print, as text: pure parsers, tested on recorded output."""
