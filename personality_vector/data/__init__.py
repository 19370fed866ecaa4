"""Every reader of a data file: chats, statements, adjectives, instruments, personas."""
