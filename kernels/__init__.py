"""Triton kernels. They know no autograd and no modules; `hsta_fast.ops` calls them."""
