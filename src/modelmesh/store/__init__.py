"""Where registrations live: the Store protocol and its implementations (memory, SQLite, etcd).

What is *loaded* is never stored here. Only `instance/` chooses an implementation; everyone else sees
`modelmesh.store.protocol`.
"""
