//! The branch daemon: cache, link, volumes and desktops
