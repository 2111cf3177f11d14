#include "package.hpp"

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <sstream>

#include "dnd_fast/generator.hpp"
#include "files.hpp"

namespace dnd_fast {
namespace {

/// The first line of what libtorch says, without its stack.
std::string first_line(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

template <class T>
at::Tensor view(const Array<T>& array, at::Device device) {
  // Models do not write to their inputs.
  auto* values = const_cast<T*>(array.values.data());
  return at::from_blob(values, array.shape, c10::CppTypeToScalarType<T>::value).to(device);
}

/// Unpack a package. libtorch would do so itself, but leave the files where loading fails, and write
/// them wherever their names lead.
const std::filesystem::path& unpack(const std::filesystem::path& file,
                                    const std::filesystem::path& folder) {
  caffe2::serialize::PyTorchStreamReader reader(file.string());
  for (const std::string& name : reader.getAllRecords()) {
    const std::filesystem::path place = name;
    if (place.is_absolute() || std::count(place.begin(), place.end(), "..")) {
      throw Error("the name of '" + name + "' in it leads out of it.");
    }
    const auto [data, size] = reader.getRecord(name);
    write_file(folder / place, {static_cast<const char*>(data.get()), size});
  }
  return folder;
}

}  // namespace

struct Package::Model {
  std::string name;
  at::Device device;
  TemporaryFolder folder;
  torch::inductor::AOTIModelPackageLoader loader;

  Model(const std::filesystem::path& file, const std::string& device_name)
      : name(file.string()), device(device_name), loader(unpack(file, folder.path()).string()) {}

  Array<float> run(const std::vector<at::Tensor>& inputs, const std::vector<std::int64_t>& shape) try {
    const c10::InferenceMode mode;
    const std::vector<at::Tensor> outputs = loader.run(inputs);
    if (outputs.size() != 1 || outputs[0].sizes() != shape || outputs[0].scalar_type() != at::kFloat) {
      std::ostringstream expected;
      expected << "one tensor " << c10::IntArrayRef(shape) << " of float32";
      throw Error(name + " is of another generator: it does not give " + expected.str() + ".");
    }
    const at::Tensor output = outputs[0].to(at::kCPU).contiguous();
    const float* values = output.const_data_ptr<float>();
    return {shape, std::vector<float>(values, values + output.numel())};
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    throw Error(name + " failed, for want of memory perhaps: " + first_line(error));
  }
};

Package::Package(const std::filesystem::path& file, const std::string& device,
                 const std::string& takes) try : model_(std::make_unique<Model>(file, device)) {
  const std::string found = model_->loader.get_metadata()["takes"];
  if (found != takes) {
    throw Error("it is of another generator, and takes " + found + ", not " + takes + ".");
  }
} catch (const std::bad_alloc&) {
  throw;
} catch (const std::exception& error) {
  throw Error(file.string() + " cannot be loaded: " + first_line(error));
}

Package::Package(Package&&) noexcept = default;
Package::~Package() = default;

Array<float> Package::run(const Array<float>& input, const std::vector<std::int64_t>& shape) const {
  return model_->run({view(input, model_->device)}, shape);
}

Array<float> Package::run(const Array<std::int64_t>& input, const Array<std::int64_t>& other,
                          const std::vector<std::int64_t>& shape) const {
  return model_->run({view(input, model_->device), view(other, model_->device)}, shape);
}

}  // namespace dnd_fast
