# Lets kernels cimport from the modules of the package.
