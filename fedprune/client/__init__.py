"""What every client shares on a device: messages in, local training, messages out."""
