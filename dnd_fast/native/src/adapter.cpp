#include "dnd_fast/generator.hpp"
#include "files.hpp"
#include "json.hpp"
#include "safetensors.hpp"

namespace dnd_fast {
namespace {

const char* const kConfigFile = "adapter_config.json";
const char* const kWeightsFile = "adapter_model.safetensors";

}  // namespace

Adapter Adapter::load(const std::filesystem::path& folder) {
  const std::string config = (folder / kConfigFile).string();
  const std::string weights = (folder / kWeightsFile).string();
  Adapter adapter;
  adapter.config = read_file(config);
  parse_object(adapter.config, config);
  adapter.tensors = parse_safetensors(read_file(weights), weights);
  return adapter;
}

void Adapter::save(const std::filesystem::path& folder) const {
  const std::vector<const Tensor*> order = safetensors_order(tensors);
  const std::string header = safetensors_header(order);
  std::vector<std::string_view> pieces = {header};
  for (const Tensor* tensor : order) {
    pieces.emplace_back(reinterpret_cast<const char*>(tensor->values.data()),
                        sizeof(float) * tensor->values.size());
  }
  StagedFolder staged(folder);
  staged.write(kWeightsFile, pieces);
  staged.write(kConfigFile, {config});
  staged.commit();
}

}  // namespace dnd_fast
