"""How the embedded default model is made: pictures from emoji sets, captions, an autoencoder, a denoiser, an export."""
