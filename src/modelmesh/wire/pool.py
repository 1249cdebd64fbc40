"""A descriptor pool of our own, so that another client of the same protocol (Triton's defines the same messages) can
live in the same process. `make wire` points the generated code here."""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
