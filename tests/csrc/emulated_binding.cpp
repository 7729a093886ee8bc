// The binding itself on CPU tensors and the emulated device: its functions under other names, on a stream of our own.
#include "tubelet_embed_cuda.cpp"

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = reinterpret_cast<void*>(0x57);
  return AOTI_TORCH_SUCCESS;
}

TORCH_LIBRARY(hsta_fast_emulated, m) {
  m.def("tubelet_tokens(Tensor video, Tensor weight, Tensor bias, Tensor? cls_token, Tensor? pos_embed) -> Tensor",
        hsta_fast::tubelet_tokens_cuda);
  m.def("tubelet_patches(Tensor video, int[] patch, ScalarType dtype, float shift) -> Tensor",
        hsta_fast::tubelet_patches_cuda);
}
