"""Every private or faulty corner of torch and its companions that hpff touches, in one place."""
