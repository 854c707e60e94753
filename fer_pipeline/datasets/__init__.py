"""One file a data set or format: `samples(path, options)` says where its pictures lie, `read(sample, options)` brings one."""
