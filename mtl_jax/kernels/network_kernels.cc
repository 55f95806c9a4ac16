// One translation unit for several sources: what they share takes a third of their compilers' time.

#include "dense_kernels.cc"
#include "detection_kernels.cc"
#include "inference_kernels.cc"
#include "norm_kernels.cc"
