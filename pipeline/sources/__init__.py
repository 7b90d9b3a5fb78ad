"""Where samples come from: data set files, the files of a source, captions and class names."""
