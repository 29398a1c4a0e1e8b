"""The .litertlm container of Google's LiteRT-LM: schema, writer, reader, export of a bundle, checker."""
