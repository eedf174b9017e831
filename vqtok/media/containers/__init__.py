"""Audio files as decoders read them: their streams are found here and decoded by libsndfile or libav."""
