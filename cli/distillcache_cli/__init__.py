"""The commands of distillcache: arguments in, one library call, result out."""
