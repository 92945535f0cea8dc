//! A real kubectl against the server.
