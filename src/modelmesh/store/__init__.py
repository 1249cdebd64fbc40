"""Where registrations live: the Store protocol and its implementations (memory, SQLite; etcd comes with the mesh).

What is *loaded* is never stored here. Only `instance/` chooses an implementation; everyone else sees
`modelmesh.store.protocol`.
"""
