"""The .proto files and what is generated from them (`wire/generated`, by `make wire`, checked in)."""
