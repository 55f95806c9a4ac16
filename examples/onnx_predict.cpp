// Finds objects in a photograph with an exported network: letterbox, ONNX Runtime, drawing. No other library.
//
//   mtl-jax export --weights runs/seq --out exported --format onnx
//   g++ -std=c++17 -O2 examples/onnx_predict.cpp -I $ORT/include -L $ORT/lib -lonnxruntime -o onnx_predict
//   ./onnx_predict exported/model.onnx photo.ppm drawn.ppm 0.3
//
// $ORT is the folder of ONNX Runtime's release archive. Photographs are PPM files (magick photo.jpg photo.ppm). Prints a
// line for each box, in pixels of the photograph, and for each task that answers with probabilities; tints masks.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

constexpr int64_t ANY_SIZE = 512;  // px, the side of the input of a file that takes images of any size

struct Picture {
    int width = 0, height = 0;
    std::vector<uint8_t> rgb;
    const uint8_t* at(int x, int y) const { return &rgb[3 * (static_cast<size_t>(y) * width + x)]; }
    uint8_t* at(int x, int y) { return &rgb[3 * (static_cast<size_t>(y) * width + x)]; }
};

Picture read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    Picture picture;
    int most = 0;
    if (!(file >> kind >> picture.width >> picture.height >> most) || kind != "P6" || most != 255)
        throw std::runtime_error(path + ": expected a PPM file (P6, 255 levels); convert it: magick photo.jpg photo.ppm");
    file.get();
    picture.rgb.resize(3ull * picture.width * picture.height);
    if (!file.read(reinterpret_cast<char*>(picture.rgb.data()), static_cast<std::streamsize>(picture.rgb.size())))
        throw std::runtime_error(path + ": expected " + std::to_string(picture.rgb.size()) + " bytes of pixels, found fewer");
    return picture;
}

void write_ppm(const Picture& picture, const std::string& path) {
    std::ofstream file(path, std::ios::binary);
    file << "P6\n" << picture.width << ' ' << picture.height << "\n255\n";
    file.write(reinterpret_cast<const char*>(picture.rgb.data()), static_cast<std::streamsize>(picture.rgb.size()));
}

// Where the photograph lies in the network's input: input = photograph * scale + offset.
struct Placement {
    float scale, offset_x, offset_y;
};

// The whole photograph between grey bars, as model.json says under "placement": bilinear, averaged down before where it
// shrinks to less than half. f32[height, width, 3] in 0..1.
std::vector<float> letterbox(Picture picture, int height, int width, Placement& placed) {
    placed.scale = std::min(float(height) / picture.height, float(width) / picture.width);
    placed.offset_x = (width - picture.width * placed.scale) / 2;
    placed.offset_y = (height - picture.height * placed.scale) / 2;
    const int factor = std::max(1, int(1 / placed.scale));
    const float scale = placed.scale * factor, right_edge = float(picture.width) / factor, lower_edge = float(picture.height) / factor;
    if (factor > 1) {  // averages whole blocks of pixels
        Picture smaller{std::max(1, picture.width / factor), std::max(1, picture.height / factor), {}};
        smaller.rgb.resize(3ull * smaller.width * smaller.height);
        for (int y = 0; y < smaller.height; ++y)
            for (int x = 0; x < smaller.width; ++x)
                for (int c = 0; c < 3; ++c) {
                    int sum = 0, count = 0;
                    for (int row = factor * y; row < std::min(factor * (y + 1), picture.height); ++row)
                        for (int column = factor * x; column < std::min(factor * (x + 1), picture.width); ++column, ++count)
                            sum += picture.at(column, row)[c];
                    smaller.at(x, y)[c] = uint8_t((sum + count / 2) / count);
                }
        picture = std::move(smaller);
    }
    std::vector<float> pixels(3ull * height * width, 114 / 255.0f);
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x) {
            const float u = (x + 0.5f - placed.offset_x) / scale - 0.5f, v = (y + 0.5f - placed.offset_y) / scale - 0.5f;
            if (u < -0.5f || v < -0.5f || u >= right_edge - 0.5f || v >= lower_edge - 0.5f) continue;
            const int x0 = std::min(int(std::floor(u)), picture.width - 1), y0 = std::min(int(std::floor(v)), picture.height - 1);
            const int x1 = std::min(x0 + 1, picture.width - 1), y1 = std::min(y0 + 1, picture.height - 1);
            const float right = u - x0, below = v - y0;
            for (int c = 0; c < 3; ++c) {
                const float top = picture.at(std::max(x0, 0), std::max(y0, 0))[c] * (1 - right) +
                                  picture.at(x1, std::max(y0, 0))[c] * right;
                const float bottom = picture.at(std::max(x0, 0), y1)[c] * (1 - right) + picture.at(x1, y1)[c] * right;
                pixels[3 * (static_cast<size_t>(y) * width + x) + c] = (top * (1 - below) + bottom * below) / 255;
            }
        }
    return pixels;
}

void draw_box(Picture& picture, const float* box) {
    const auto clamp = [](float value, int length) { return std::clamp(int(std::lround(value)), 0, length - 1); };
    const int left = clamp(box[0], picture.width), right = clamp(box[2], picture.width);
    const int top = clamp(box[1], picture.height), bottom = clamp(box[3], picture.height);
    const auto dot = [&](int x, int y) { std::copy_n(std::initializer_list<uint8_t>{255, 40, 40}.begin(), 3, picture.at(x, y)); };
    for (int x = left; x <= right; ++x) dot(x, top), dot(x, bottom);
    for (int y = top; y <= bottom; ++y) dot(left, y), dot(right, y);
}

// Tints every pixel of a class but the first, which is the background.
void draw_mask(Picture& picture, const int32_t* mask, int height, int width, const Placement& placed) {
    for (int y = 0; y < picture.height; ++y)
        for (int x = 0; x < picture.width; ++x) {
            const int column = std::clamp(int((x + 0.5f) * placed.scale + placed.offset_x), 0, width - 1);
            const int row = std::clamp(int((y + 0.5f) * placed.scale + placed.offset_y), 0, height - 1);
            if (const int32_t label = mask[static_cast<size_t>(row) * width + column])
                for (int c = 0; c < 3; ++c)
                    picture.at(x, y)[c] = uint8_t((picture.at(x, y)[c] + ((label * (83 + 58 * c)) & 255)) / 2);
        }
}

int run(const std::string& model, const std::string& photograph, const std::string& drawn, float least) {
    Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "onnx_predict");
    Ort::Session session(environment, model.c_str(), Ort::SessionOptions{});
    std::vector<int64_t> shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() != 4 || shape[3] != 3)
        throw std::runtime_error(model + ": expected images [batch, height, width, 3]; export with --layout nhwc");
    shape[0] = 1;
    for (int axis : {1, 2})
        if (shape[axis] < 0) shape[axis] = ANY_SIZE;  // exported with --image_size dynamic
    Picture picture = read_ppm(photograph);
    Placement placed{};
    const int height = int(shape[1]), width = int(shape[2]);
    std::vector<float> pixels = letterbox(picture, height, width, placed);

    Ort::AllocatorWithDefaultOptions allocator;
    std::vector<std::string> names;
    for (size_t i = 0; i < session.GetOutputCount(); ++i)
        names.emplace_back(session.GetOutputNameAllocated(i, allocator).get());
    std::vector<const char*> outputs;
    for (const std::string& name : names) outputs.push_back(name.c_str());
    const char* input = "image";
    Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Ort::Value image = Ort::Value::CreateTensor<float>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
    std::vector<Ort::Value> found = session.Run(Ort::RunOptions{}, &input, &image, 1, outputs.data(), outputs.size());
    std::map<std::string, Ort::Value*> by_name;
    for (size_t i = 0; i < names.size(); ++i) by_name[names[i]] = &found[i];

    for (const std::string& name : names) {  // masks first: boxes are drawn over them
        const std::string task = name.substr(0, name.find('/')), field = name.substr(name.find('/') + 1);
        if (field == "mask") draw_mask(picture, by_name[name]->GetTensorData<int32_t>(), height, width, placed);
        if (field != "probability") continue;
        const size_t count = by_name[name]->GetTensorTypeAndShapeInfo().GetElementCount();
        const float* chance = by_name[name]->GetTensorData<float>();
        const size_t best = size_t(std::max_element(chance, chance + count) - chance);
        std::printf("%s class %zu %.4f\n", task.c_str(), best, chance[best]);
    }
    for (const std::string& name : names) {
        const std::string task = name.substr(0, name.find('/')), field = name.substr(name.find('/') + 1);
        if (field != "boxes_xyxy" || !by_name.count(task + "/valid")) continue;
        const float* boxes = by_name[name]->GetTensorData<float>();
        const float* score = by_name[task + "/score"]->GetTensorData<float>();
        const int32_t* label = by_name[task + "/label"]->GetTensorData<int32_t>();
        const bool* valid = by_name[task + "/valid"]->GetTensorData<bool>();
        const size_t count = by_name[task + "/score"]->GetTensorTypeAndShapeInfo().GetElementCount();
        for (size_t i = 0; i < count && valid[i]; ++i) {
            if (score[i] < least) continue;
            float box[4];
            for (int side = 0; side < 4; ++side)
                box[side] = (boxes[4 * i + side] - (side % 2 ? placed.offset_y : placed.offset_x)) / placed.scale;
            std::printf("%s box %d %.4f %.1f %.1f %.1f %.1f\n", task.c_str(), label[i], score[i], box[0], box[1], box[2], box[3]);
            draw_box(picture, box);
        }
    }
    write_ppm(picture, drawn);
    return 0;
}

int main(int count, char** arguments) {
    if (count < 4) {
        std::cerr << "usage: onnx_predict MODEL.onnx PHOTOGRAPH.ppm DRAWN.ppm [LEAST_SCORE]\n";
        return 2;
    }
    try {
        return run(arguments[1], arguments[2], arguments[3], count > 4 ? std::stof(arguments[4]) : 0.3f);
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
}
