//! The datacenter daemon: catalog, publish, sync server and management API
