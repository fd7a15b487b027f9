//! The claim, write and ack rules as one pure machine.
