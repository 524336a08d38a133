// The operator `batch_norm` as a function of Python: what torch.ops does around a call takes longer
// than the loops take for a small batch.
//
// Without Python's headers it is left out, and torch.ops serves.
#if __has_include(<Python.h>)
#include <ATen/record_function.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include "layer.h"

namespace normscope {
namespace {

constexpr Py_ssize_t ARGUMENTS = 16;  // those of the operator, in its order

// The arguments of a call; `plain` is whether each is of the type that the layers give.
struct Arguments {
  PyObject* const* given;
  bool plain;

  Tensor tensor(int i) {
    if (given[i] == Py_None) return {};
    plain &= THPVariable_CheckTypeExact(Py_TYPE(given[i]));  // a subclass may watch every call
    return plain ? THPVariable_Unpack(given[i]) : Tensor();
  }
  bool flag(int i) {
    plain &= PyBool_Check(given[i]);
    return given[i] == Py_True;
  }
  int64_t integer(int i) {
    plain &= PyLong_CheckExact(given[i]);
    return plain ? PyLong_AsLongLong(given[i]) : 0;
  }
  double real(int i) {
    plain &= PyFloat_CheckExact(given[i]);
    return plain ? PyFloat_AS_DOUBLE(given[i]) : 0;
  }
  std::optional<double> momentum(int i) {
    return given[i] == Py_None ? std::nullopt : std::optional(real(i));
  }
};

// None where the call cannot be taken.
PyObject* batch_norm(PyObject*, PyObject* const* given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Arguments from{given, count == ARGUMENTS};
  if (!from.plain) Py_RETURN_NONE;
  Layer layer{{from.tensor(0), from.tensor(10), from.integer(11), from.tensor(12), from.tensor(3),
               from.tensor(4), from.tensor(14), from.integer(13)},
              from.tensor(1), from.tensor(2), from.tensor(9), from.flag(5), from.flag(6),
              from.momentum(7), from.real(8), from.integer(15)};
  if (!from.plain) Py_RETURN_NONE;
  Output output;
  {
    pybind11::gil_scoped_release without;
    RECORD_FUNCTION("normscope::batch_norm", {});
    if (!run(std::move(layer), output, false)) output.y.reset();
  }
  if (!output.y.defined()) Py_RETURN_NONE;
  return THPVariable_Wrap(std::move(output.y));
  END_HANDLE_TH_ERRORS
}

PyMethodDef functions[] = {
    {"batch_norm", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(batch_norm)),
     METH_FASTCALL, nullptr},
    {}};
PyModuleDef definition{.m_base = PyModuleDef_HEAD_INIT,
                       .m_name = "normscope_kernels",
                       .m_size = -1,
                       .m_methods = functions};

}  // namespace
}  // namespace normscope

PyMODINIT_FUNC PyInit_normscope_kernels() { return PyModule_Create(&normscope::definition); }
#endif
